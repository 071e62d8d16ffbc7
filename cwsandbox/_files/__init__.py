"""Operations on files in a sandbox: whole files, streams, folders, watching. `cwsandbox.files` is their face."""
