// The Client App: publishes its certificates at /certificates, and calls the API App, at /call, with ID tokens that signetd signs.
//
//	client PORT EMAIL API_URL AUDIENCE
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
)

func main() {
	port, email, apiURL, audience := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	signetd := "http://" + os.Getenv("GCE_METADATA_HOST")
	// As signetd publishes them now: the next key is there before it signs, and the last one after.
	http.HandleFunc("/certificates", func(w http.ResponseWriter, _ *http.Request) {
		relay(w)(http.Get(signetd + "/robot/v1/metadata/x509/" + email))
	})
	http.HandleFunc("/call", func(w http.ResponseWriter, _ *http.Request) {
		token, err := idToken(signetd+"/v1/projects/-/serviceAccounts/"+email+":generateIdToken", audience)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		request, _ := http.NewRequest(http.MethodGet, apiURL, nil)
		request.Header.Set("Authorization", "Bearer "+token)
		relay(w)(http.DefaultClient.Do(request))
	})
	listener, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("http://%s\n", listener.Addr())
	log.Fatal(http.Serve(listener, nil))
}

func idToken(url, audience string) (string, error) {
	body, _ := json.Marshal(map[string]any{"audience": audience, "includeEmail": true})
	request, err := http.NewRequest("POST", url, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Authorization", "Bearer any") // As Google's API wants one; here any will do.
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	var answer struct{ Token string }
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("signetd answers %s", response.Status)
	}
	err = json.NewDecoder(response.Body).Decode(&answer)
	return answer.Token, err
}

// relay passes an answer on, with how long it may be kept.
func relay(w http.ResponseWriter) func(*http.Response, error) {
	return func(response *http.Response, err error) {
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer response.Body.Close()
		for _, name := range []string{"Content-Type", "Cache-Control"} {
			w.Header().Set(name, response.Header.Get(name))
		}
		w.WriteHeader(response.StatusCode)
		io.Copy(w, response.Body)
	}
}
