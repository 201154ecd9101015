"""CT series in DICOM: what a header says, which files make a volume, where it lies, its HU."""
