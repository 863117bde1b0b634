// Application default credentials, unchanged: what every Google library in Go does by itself.
//
//	eval "$(signetctl env)"
//	go run ./adc https://pubsub.googleapis.com/v1/projects/PROJECT/topics
package main

import (
	"fmt"
	"io"
	"log"
	"os"

	"cloud.google.com/go/auth/credentials"
	"cloud.google.com/go/auth/httptransport"
)

func main() {
	scopes := []string{"https://www.googleapis.com/auth/cloud-platform"}
	found, err := credentials.DetectDefault(&credentials.DetectOptions{Scopes: scopes})
	if err != nil {
		log.Fatal(err)
	}
	client, err := httptransport.NewClient(&httptransport.Options{Credentials: found})
	if err != nil {
		log.Fatal(err)
	}
	response, err := client.Get(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != 200 {
		log.Fatal(response.Status, string(body), err)
	}
	fmt.Println(string(body))
}
