"""Network definitions, one file per architecture; bundles name them in their configs."""
