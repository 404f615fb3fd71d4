package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/danqing-queue/danqing/storage/atomicfile"
)

// instance is where a running `danqing up` is reached: it leaves this in its data
// directory, for the other commands on the machine.
type instance struct {
	PID      int    `json:"pid"`
	HTTP     string `json:"http"`      // base URL without a path, as in http://127.0.0.1:8765
	RedisURL string `json:"redis_url"` // with the password: the file is its owner's alone
}

// errNoInstance means that no program runs on the data directory, whatever an
// older file says.
var errNoInstance = errors.New("no running instance")

const (
	instanceFile = "instance.json"
	// instanceProbe bounds the connection that tells a live instance from a stale
	// file; it is on the same machine.
	instanceProbe = time.Second
)

// writeInstance leaves the file in dir, in place of an older one, readable by
// nobody else. The caller removes it with removeInstance before it stops to serve.
func writeInstance(dir string, at instance) (err error) {
	text, err := json.Marshal(at)
	if err != nil {
		return fmt.Errorf("write %s: %w", instanceFile, err)
	}
	err = atomicfile.Write(filepath.Join(dir, instanceFile), 0o600, func(w io.Writer) error {
		_, err := w.Write(append(text, '\n'))
		return err
	})
	if err != nil {
		return fmt.Errorf("write %s: %w", instanceFile, err)
	}
	return nil
}

// redisOptions returns how to reach the Redis of the instance on dir.
func (i instance) redisOptions(dir string) (*redis.Options, error) {
	options, err := redis.ParseURL(i.RedisURL)
	if err != nil { // its text may hold the password
		return nil, fmt.Errorf("read %s: redis_url is no URL of a Redis", filepath.Join(dir, instanceFile))
	}
	return options, nil
}

// removeInstance takes the file away; that there is none is no error.
func removeInstance(dir string) error {
	if err := os.Remove(filepath.Join(dir, instanceFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", instanceFile, err)
	}
	return nil
}

// readInstance returns the instance that runs on dir, or errNoInstance if there is
// no file, or one that its process could not remove: its Redis refuses connections.
func readInstance(ctx context.Context, dir string) (instance, error) {
	path := filepath.Join(dir, instanceFile)
	text, err := os.ReadFile(path) //nolint:gosec // the user's own directory
	if errors.Is(err, fs.ErrNotExist) {
		return instance{}, errNoInstance
	}
	if err != nil {
		return instance{}, fmt.Errorf("read instance: %w", err)
	}
	var at instance
	if err := json.Unmarshal(text, &at); err != nil {
		return instance{}, fmt.Errorf("read %s: %w: if no danqing runs there, delete it", path, err)
	}
	where, err := url.Parse(at.RedisURL)
	if err != nil || where.Host == "" { // its text may hold the password
		return instance{}, fmt.Errorf("read %s: redis_url is no URL: if no danqing runs there, delete it", path)
	}
	// A PID may be another program's by now, or another container's: the port tells.
	probe, err := (&net.Dialer{Timeout: instanceProbe}).DialContext(ctx, "tcp", where.Host)
	if err != nil {
		return instance{}, errNoInstance
	}
	return at, probe.Close()
}
