import com.google.api.client.http.GenericUrl;
import com.google.api.client.http.javanet.NetHttpTransport;
import com.google.auth.http.HttpCredentialsAdapter;
import com.google.auth.oauth2.GoogleCredentials;

/**
 * Application default credentials, unchanged: what every Google library in Java does by itself.
 *
 * <pre>
 * eval "$(signetctl env)"
 * java -cp 'lib/*' src/main/java/Adc.java https://pubsub.googleapis.com/v1/projects/PROJECT/topics
 * </pre>
 */
public final class Adc {
  public static void main(String[] arguments) throws Exception {
    var credentials =
        GoogleCredentials.getApplicationDefault()
            .createScoped("https://www.googleapis.com/auth/cloud-platform");
    var requests = new NetHttpTransport().createRequestFactory(new HttpCredentialsAdapter(credentials));
    System.out.println(requests.buildGetRequest(new GenericUrl(arguments[0])).execute().parseAsString());
  }
}
