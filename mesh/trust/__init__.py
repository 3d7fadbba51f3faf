"""Who is who, and who may what: keys, credentials, and the files that an operator keeps."""
