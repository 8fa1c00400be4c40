"""`sniper report` of a data set: what it holds in numbers, and the page that shows them.

In: the ledger, the manifests and a few chips. Out: an HTML page, and the same as JSON.
"""
