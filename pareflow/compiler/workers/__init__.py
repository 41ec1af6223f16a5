"""What runs in worker environments: the pipe's two ends, and one file per runtime.

A worker's interpreter has its runtime and numpy, and no pareflow: nothing here imports what lies outside this
folder, and nothing is imported from it under the name pareflow there (see `serve.py`).
"""
