import com.google.auth.oauth2.GoogleCredentials;
import com.google.auth.oauth2.IdTokenCredentials;
import com.google.auth.oauth2.IdTokenProvider;
import com.google.auth.oauth2.ImpersonatedCredentials;
import com.google.gson.JsonObject;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.net.URI;
import java.util.List;

/** google-auth-library-java, as tests/clients/README.md says. */
public final class Tokens {
  private static GoogleCredentials last;

  public static void main(String[] none) throws IOException {
    var lines = new BufferedReader(new InputStreamReader(System.in));
    for (var line = lines.readLine(); line != null; line = lines.readLine()) {
      var said = new JsonObject();
      try {
        said.addProperty("token", answer(List.of(line.split(" "))));
      } catch (IOException error) {
        said.addProperty("error", error.toString());
      }
      System.out.println(said);
    }
  }

  private static String answer(List<String> words) throws IOException {
    var scopes = words.subList(1, words.size());
    switch (words.get(0)) {
      case "access" -> last = GoogleCredentials.getApplicationDefault().createScoped(scopes);
      case "identity" -> {
        var provider = (IdTokenProvider) GoogleCredentials.getApplicationDefault();
        var credentials =
            IdTokenCredentials.newBuilder().setIdTokenProvider(provider).setTargetAudience(words.get(1)).build();
        credentials.refresh();
        return credentials.getIdToken().getTokenValue();
      }
      case "account" -> {
        // Its metadata credentials know the default account alone.
        var accounts = "http://" + System.getenv("GCE_METADATA_HOST") + "/v1/projects/-/serviceAccounts/";
        last =
            ImpersonatedCredentials.newBuilder()
                .setSourceCredentials(GoogleCredentials.getApplicationDefault())
                .setTargetPrincipal(words.get(1))
                .setScopes(words.subList(2, words.size()))
                .setIamEndpointOverride(accounts + words.get(1) + ":generateAccessToken")
                .build();
      }
      default -> {}
    }
    // As for a request, so that the library decides whether its token is still good.
    last.getRequestMetadata(URI.create("https://service.googleapis.com/"));
    return last.getAccessToken().getTokenValue();
  }
}
