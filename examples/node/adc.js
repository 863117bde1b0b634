// Application default credentials, unchanged: what every Google library in Node does by itself.
//
//     eval "$(signetctl env)"
//     node adc.js https://pubsub.googleapis.com/v1/projects/PROJECT/topics
import { GoogleAuth } from 'google-auth-library';

const auth = new GoogleAuth({ scopes: 'https://www.googleapis.com/auth/cloud-platform' });
const response = await auth.request({ url: process.argv[2] });
console.log(JSON.stringify(response.data));
