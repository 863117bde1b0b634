//! Where secrets are found: relative to $CREDENTIALS_DIRECTORY, else to the configuration.
