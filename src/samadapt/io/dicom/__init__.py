"""DICOM: series of slices, multi-frame volumes and pictures; SEG and RTSTRUCT objects as labels; SEG out.

A scan is all files of one series in one folder, sorted by where its slices lie, and the first file by name stands for it.
pydicom, highdicom and SimpleITK are an extra (`samadapt[dicom]`) and are imported when a DICOM file is met.
"""
