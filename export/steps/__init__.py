"""The steps of an export that run in processes of their own.

Each module has `Request`, `Report` and `run(request, folder) -> Report`; what it writes lies in
`folder`. Steps do not import each other.
"""
