"""What leaves for the programs of others: DICOM for viewers and archives."""
