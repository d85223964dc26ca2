"""`self.map`: what an author sees of the table.

Pure.
"""
