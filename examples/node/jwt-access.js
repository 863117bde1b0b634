// A JWT access token for one service, attached to each request by the library: a client of our own in GoogleAuth. Needs the
// operation sign-jwt for that audience.
//
//     eval "$(signetctl env)"
//     node jwt-access.js EMAIL https://pubsub.googleapis.com/ https://pubsub.googleapis.com/v1/projects/PROJECT/topics
import { AuthClient, GoogleAuth } from 'google-auth-library';

class SignetJwtClient extends AuthClient {
  constructor(email, audience) {
    super();
    this.email = email;
    this.audience = audience;
  }

  async getAccessToken() {
    const now = Math.floor(Date.now() / 1000);
    if (!this.token || this.expires < now + 300) {
      const claims = { iss: this.email, sub: this.email, aud: this.audience, iat: now, exp: now + 3600 };
      const account = `http://${process.env.GCE_METADATA_HOST}/v1/projects/-/serviceAccounts/${this.email}`;
      const payload = JSON.stringify(claims);
      const headers = { authorization: 'Bearer any' }; // As Google's API wants one; here any will do.
      const request = { url: `${account}:signJwt`, method: 'POST', headers, data: { payload } };
      const { data } = await this.transporter.request(request);
      this.token = data.signedJwt;
      this.expires = claims.exp;
    }
    return { token: this.token };
  }

  async getRequestHeaders() {
    const { token } = await this.getAccessToken();
    return new Headers({ authorization: `Bearer ${token}` });
  }

  async request(options) {
    const headers = new Headers(options.headers);
    (await this.getRequestHeaders()).forEach((value, name) => headers.set(name, value));
    return this.transporter.request({ ...options, headers });
  }
}

const [email, audience, url] = process.argv.slice(2);
const auth = new GoogleAuth({ authClient: new SignetJwtClient(email, audience) });
const response = await auth.request({ url });
console.log(JSON.stringify(response.data));
