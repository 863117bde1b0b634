import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

/**
 * The Client App: publishes its certificates at /certificates, and calls the API App, at /call, with ID tokens that signetd
 * signs.
 *
 * <pre>java -cp 'lib/*' ClientApp.java PORT EMAIL API_URL AUDIENCE</pre>
 */
public final class ClientApp {
  private static final HttpClient CLIENT = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
  private static final String SIGNETD = "http://" + System.getenv("GCE_METADATA_HOST");

  public static void main(String[] arguments) throws IOException {
    String email = arguments[1], api = arguments[2], audience = arguments[3];
    var server = HttpServer.create(new InetSocketAddress("127.0.0.1", Integer.parseInt(arguments[0])), 0);
    // As signetd publishes them now: the next key is there before it signs, and the last one after.
    var published = HttpRequest.newBuilder(URI.create(SIGNETD + "/robot/v1/metadata/x509/" + email)).build();
    server.createContext("/certificates", exchange -> relay(exchange, published));
    server.createContext(
        "/call",
        exchange -> {
          var bearer = "Bearer " + idToken(email, audience);
          relay(exchange, HttpRequest.newBuilder(URI.create(api)).header("Authorization", bearer).build());
        });
    server.start();
    System.out.println("http://127.0.0.1:" + server.getAddress().getPort());
  }

  private static String idToken(String email, String audience) throws IOException {
    var body = new JsonObject();
    body.addProperty("audience", audience);
    body.addProperty("includeEmail", true);
    var uri = URI.create(SIGNETD + "/v1/projects/-/serviceAccounts/" + email + ":generateIdToken");
    var answer =
        send(
            HttpRequest.newBuilder(uri)
                .header("Content-Type", "application/json")
                .header("Authorization", "Bearer any") // As Google's API wants one; here any will do.
                .POST(HttpRequest.BodyPublishers.ofString(body.toString()))
                .build());
    return JsonParser.parseString(answer.body()).getAsJsonObject().get("token").getAsString();
  }

  /** Passes an answer on, with how long it may be kept. */
  private static void relay(HttpExchange exchange, HttpRequest request) throws IOException {
    var answer = send(request);
    for (var name : new String[] {"Content-Type", "Cache-Control"}) {
      answer.headers().firstValue(name).ifPresent(value -> exchange.getResponseHeaders().set(name, value));
    }
    var body = answer.body().getBytes();
    exchange.sendResponseHeaders(answer.statusCode(), body.length);
    exchange.getResponseBody().write(body);
    exchange.close();
  }

  private static HttpResponse<String> send(HttpRequest request) throws IOException {
    try {
      return CLIENT.send(request, HttpResponse.BodyHandlers.ofString());
    } catch (InterruptedException interrupted) {
      throw new IOException(interrupted);
    }
  }
}
