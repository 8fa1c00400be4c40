"""Texts, tables, charts and pictures to one HTML file that asks for nothing outside itself.

In: sections as plain values. Out: a file that any browser shows, on a phone too. It imports `storage`, `engines` and
`schemas`.
"""
