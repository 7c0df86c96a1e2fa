"""The user's guide: Markdown in ``docs/guide``, shown in the window, in the shell, and built as HTML pages.

It lies in every installation, because it is read when the network is gone.
"""
