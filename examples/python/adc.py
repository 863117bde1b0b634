"""Application default credentials, unchanged: what every Google library in Python does by itself.

    eval "$(signetctl env)"
    python adc.py https://pubsub.googleapis.com/v1/projects/PROJECT/topics
"""

import sys

import google.auth
from google.auth.transport.requests import AuthorizedSession

credentials, project = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
response = AuthorizedSession(credentials).get(sys.argv[1])
print(response.text)
response.raise_for_status()
