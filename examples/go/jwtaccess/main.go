// A JWT access token for one service, attached to a request by the library. Needs the operation sign-jwt for that audience.
//
//	go run ./jwtaccess EMAIL https://pubsub.googleapis.com/ https://pubsub.googleapis.com/v1/projects/PROJECT/topics [SOCKET]
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"

	"golang.org/x/oauth2"

	"signet.example/google/signet"
)

func main() {
	email, audience, url, socket := os.Args[1], os.Args[2], os.Args[3], "/run/signet/signet.sock"
	if exported := os.Getenv("SIGNET_SOCKET"); exported != "" {
		socket = exported
	}
	if len(os.Args) > 4 {
		socket = os.Args[4]
	}
	ctx := context.Background()
	account, err := signet.Connect(ctx, socket, email)
	if err != nil {
		log.Fatal(err)
	}
	// For a library of cloud.google.com/go: option.WithTokenSource(account.TokenSource(audience)).
	response, err := oauth2.NewClient(ctx, account.TokenSource(audience)).Get(url)
	if err != nil {
		log.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != 200 {
		log.Fatal(response.Status, string(body), err)
	}
	fmt.Println(string(body))
}
