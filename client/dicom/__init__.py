"""From a folder of DICOM files to a table of headers and an array of pixels."""
