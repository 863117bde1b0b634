// A Cloud Storage V4 signed URL, signed in the token. Needs the operation sign-blob, at best with
// blob_prefixes = ["GOOG4-RSA-SHA256\n"], and no network.
//
//	go run ./signedurl EMAIL BUCKET OBJECT [SOCKET [HOST]]
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"cloud.google.com/go/storage"

	"signet.example/google/signet"
)

func main() {
	email, bucket, object := os.Args[1], os.Args[2], os.Args[3]
	socket := "/run/signet/signet.sock"
	if exported := os.Getenv("SIGNET_SOCKET"); exported != "" {
		socket = exported
	}
	if len(os.Args) > 4 {
		socket = os.Args[4]
	}
	account, err := signet.Connect(context.Background(), socket, email)
	if err != nil {
		log.Fatal(err)
	}
	options := &storage.SignedURLOptions{
		Scheme:         storage.SigningSchemeV4,
		Method:         "GET",
		GoogleAccessID: email,
		SignBytes:      account.SignBytes,
		Expires:        time.Now().Add(15 * time.Minute),
	}
	if len(os.Args) > 5 {
		options.Hostname, options.Insecure, options.Style = os.Args[5], true, storage.PathStyle()
	}
	url, err := storage.SignedURL(bucket, object, options)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(url)
}
