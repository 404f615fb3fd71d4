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

	"github.com/danqing-queue/danqing/config"
	"github.com/danqing-queue/danqing/storage/atomicfile"
)

// instance has the addresses of a running `danqing up`. It is stored in a file in the data
// directory, for the other commands on the machine.
type instance struct {
	PID      int    `json:"pid"`
	HTTP     string `json:"http"`      // base URL without a path, as in http://127.0.0.1:8765
	RedisURL string `json:"redis_url"` // with the password: the file is readable by its owner only
	// Models are those that its worker has lanes for, or will have in a moment.
	Models []string `json:"models"`
}

// errNoInstance means that no instance runs on the data directory. There may be a stale
// file.
var errNoInstance = errors.New("no running instance")

const (
	instanceFile = "instance.json"
	// instanceProbeTimeout limits the connection that distinguishes a running instance
	// from a stale file.
	instanceProbeTimeout = time.Second
)

// writeInstance writes the file in dir atomically, readable by its owner only. The caller
// must remove it with removeInstance before it stops serving.
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

// redis returns how the Redis of the instance on dir is reached.
func (i instance) redis(dir string) (*config.Redis, error) {
	at, err := config.ParseRedisURL(i.RedisURL)
	if err != nil { // not wrapped: its text may contain the password
		return nil, fmt.Errorf("read %s: redis_url is no URL of a Redis", filepath.Join(dir, instanceFile))
	}
	return at, nil
}

// removeInstance removes the file, if there is one.
func removeInstance(dir string) error {
	if err := os.Remove(filepath.Join(dir, instanceFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", instanceFile, err)
	}
	return nil
}

// readInstance returns the instance that runs on dir. It fails with errNoInstance if there
// is no file, or a stale one, whose Redis refuses connections. A file that another user
// could have written is refused: jobs would be sent to any address that it names.
func readInstance(ctx context.Context, dir string) (instance, error) {
	path := filepath.Join(dir, instanceFile)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return instance{}, errNoInstance
	}
	if err == nil && !info.Mode().IsRegular() { // opening a pipe could wait for ever
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		return instance{}, fmt.Errorf("read instance: %w", err)
	}
	text, err := readOwn(path)
	if err != nil {
		return instance{}, fmt.Errorf("read instance: %w", err)
	}
	var at instance
	if err := json.Unmarshal(text, &at); err != nil {
		return instance{}, fmt.Errorf("read %s: %w: if no danqing runs there, delete it", path, err)
	}
	where, err := url.Parse(at.RedisURL)
	if err != nil || where.Host == "" { // not wrapped: its text may contain the password
		return instance{}, fmt.Errorf("read %s: redis_url is no URL: if no danqing runs there, delete it", path)
	}
	// The PID may belong to another program by now, or to another container, so the port is
	// tried instead.
	probe, err := (&net.Dialer{Timeout: instanceProbeTimeout}).DialContext(ctx, "tcp", where.Host)
	if err != nil {
		return instance{}, errNoInstance
	}
	return at, probe.Close()
}

// readOwn reads a file of this user.
func readOwn(path string) ([]byte, error) {
	f, err := os.Open(path) //nolint:gosec // the path is from the user
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := checkOwner(info, os.Geteuid()); err != nil {
		return nil, fmt.Errorf("%s is not trusted: %w: run the command as the user of \"danqing up\", or delete the file", path, err)
	}
	return io.ReadAll(f)
}
