"""From a folder of DICOM files to a table of headers and an array of pixels."""

import pydicom.config

# Files break the standard every day, and pydicom's warnings quote what they hold: a patient's number would stand in a log.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
