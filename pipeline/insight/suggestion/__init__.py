"""What `sniper suggest` reckons with: scales and ranges, what they cost, and how to train on the chips.

In: a `Source` and settings. Out: proposed settings, each with the reason for it, and figures of the planner.
"""
