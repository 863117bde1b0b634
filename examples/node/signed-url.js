// A Cloud Storage V4 signed URL, signed in the token: the library is told where to have it signed. Needs the operations
// sign-blob and, since the library shows a token as it asks, mint-access-token. No network.
//
//     eval "$(signetctl env)"
//     node signed-url.js BUCKET OBJECT [ENDPOINT]
import { Storage } from '@google-cloud/storage';

const [bucket, object, apiEndpoint] = process.argv.slice(2);
const signingEndpoint = `http://${process.env.GCE_METADATA_HOST}/v1/projects/-/serviceAccounts/`;
const storage = new Storage(apiEndpoint ? { apiEndpoint, useAuthWithCustomEndpoint: true } : {});
const [url] = await storage.bucket(bucket).file(object).getSignedUrl({
  version: 'v4',
  action: 'read',
  expires: Date.now() + 15 * 60 * 1000,
  signingEndpoint,
});
console.log(url);
