"""A JWT access token for one service, attached to a request by the library. Needs the operation sign-jwt for that audience.

    python jwt_access.py EMAIL https://pubsub.googleapis.com/ https://pubsub.googleapis.com/v1/projects/PROJECT/topics [SOCKET]
"""

import sys

from google.auth.transport.requests import AuthorizedSession

from signet import JwtCredentials

email, audience, url, *socket = sys.argv[1:]
response = AuthorizedSession(JwtCredentials(email, audience, *socket)).get(url)
print(response.text)
response.raise_for_status()
