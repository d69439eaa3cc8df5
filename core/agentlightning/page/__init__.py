"""The page of `agl view`: a JSON API over run folders and stores, and a browser app built from `web/` into `static/`."""
