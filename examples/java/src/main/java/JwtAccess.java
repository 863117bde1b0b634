import com.google.api.client.http.GenericUrl;
import com.google.api.client.http.javanet.NetHttpTransport;
import com.google.auth.http.HttpCredentialsAdapter;
import com.google.auth.oauth2.AccessToken;
import com.google.auth.oauth2.OAuth2CredentialsWithRefresh;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Instant;
import java.util.Date;

/**
 * A JWT access token for one service, attached to each request by the library. Needs the operation
 * sign-jwt for that audience.
 *
 * <pre>
 * eval "$(signetctl env)"
 * java -cp 'lib/*' src/main/java/JwtAccess.java EMAIL https://pubsub.googleapis.com/ \
 *     https://pubsub.googleapis.com/v1/projects/PROJECT/topics
 * </pre>
 */
public final class JwtAccess {
  public static void main(String[] arguments) throws Exception {
    var credentials =
        OAuth2CredentialsWithRefresh.newBuilder()
            .setRefreshHandler(() -> signedJwt(arguments[0], arguments[1]))
            .build();
    var requests = new NetHttpTransport().createRequestFactory(new HttpCredentialsAdapter(credentials));
    System.out.println(requests.buildGetRequest(new GenericUrl(arguments[2])).execute().parseAsString());
  }

  /** Has signetd sign the claims, at the HTTP address that `signetctl env` names. */
  private static AccessToken signedJwt(String email, String audience) throws IOException {
    var now = Instant.now().getEpochSecond();
    var claims = new JsonObject();
    claims.addProperty("iss", email);
    claims.addProperty("sub", email);
    claims.addProperty("aud", audience);
    claims.addProperty("iat", now);
    claims.addProperty("exp", now + 3600);
    var payload = new JsonObject();
    payload.addProperty("payload", claims.toString());
    var host = System.getenv("GCE_METADATA_HOST");
    var request =
        HttpRequest.newBuilder(URI.create("http://" + host + "/v1/projects/-/serviceAccounts/" + email + ":signJwt"))
            .header("Content-Type", "application/json")
            .header("Authorization", "Bearer any") // As Google's API wants one; here any will do.
            .POST(HttpRequest.BodyPublishers.ofString(payload.toString()))
            .build();
    try {
      var response =
          HttpClient.newBuilder()
              .version(HttpClient.Version.HTTP_1_1)
              .build()
              .send(request, HttpResponse.BodyHandlers.ofString());
      if (response.statusCode() != 200) {
        throw new IOException(response.body());
      }
      var jwt = JsonParser.parseString(response.body()).getAsJsonObject().get("signedJwt").getAsString();
      return new AccessToken(jwt, new Date((now + 3600) * 1000));
    } catch (InterruptedException interrupted) {
      throw new IOException(interrupted);
    }
  }
}
