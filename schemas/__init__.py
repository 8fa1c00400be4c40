"""What is on disk and what may be set: Arrow schemas, status and reason codes, settings. No work is done here."""
