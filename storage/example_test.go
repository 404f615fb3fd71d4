package storage_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/danqing-queue/danqing/storage"
	"github.com/danqing-queue/danqing/storage/embedded"
)

// Objects of the embedded server are files.
func Example() {
	dir, err := os.MkdirTemp("", "bucket")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary folder
	server, err := embedded.Open(embedded.Config{Dir: dir})
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close() //nolint:errcheck // nothing is open any more

	id, secret := server.Credentials()
	bucket, err := storage.New(storage.Config{
		Bucket: server.Bucket(), Endpoint: "http://bucket.invalid", AccessKeyID: id, SecretAccessKey: secret,
		HTTPClient: server.HTTPClient(),
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	if err := bucket.PutSidecar(ctx, &storage.Sidecar{JobID: "春季主图.A-017", State: "failed", Message: "内容不合规"}); err != nil {
		log.Fatal(err)
	}
	key, err := bucket.ImageKey(storage.KeyVars{JobID: "春季主图.A-017", N: 1})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(key)
	_, err = os.Stat(server.Path("_jobs/春季主图.A-017.json"))
	fmt.Println(err)
	// Output:
	// 春季主图/A-017-1.png
	// <nil>
}
