"""What is on disk and what may be set: Arrow schemas, status and reason codes, errors, array types and settings.

No work is done here. It imports no other package of the project, and all of them import it.
"""
