"""Which scans of a data set are of one patient, or one scan twice: found by registering the images."""
