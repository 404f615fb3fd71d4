package storage

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// Folders below the prefix that are not images. A key template cannot reach
// into them.
const (
	sidecarFolder   = "_jobs/"
	referenceFolder = "_refs/"
	heldFolder      = "_held/"
)

// maxKeyBytes is S3's limit on a key (user guide, "Creating object key names").
const maxKeyBytes = 1024

// maxNameBytes is what Linux and macOS allow in a file name (NAME_MAX); the
// embedded store shows keys as files.
const maxNameBytes = 255

// maxN bounds an image's number within its job: two digits, more than any
// model makes at once.
const maxN = 99

// maxVarBytes is where a value in a key is cut, so that a path segment made of
// one or three stays below the 255 bytes of a file name.
const maxVarBytes = 64

// LinkLifetime is how long a presigned link lives: the most that SigV4 allows,
// 604,800 s (AWS CLI reference, s3 presign). With temporary credentials it ends
// with them, if that is earlier.
const LinkLifetime = 7 * 24 * time.Hour

// KeyVars fills the key template.
type KeyVars struct {
	JobID      string    // required, [A-Za-z0-9._-]{1,128}
	N          int       // required, 1 to 99
	Batch      string    // "-" in the key if empty, as the next four
	ID         string    // the line's own ID in its batch
	Model      string    // such as wanx-v1
	SourceName string    // the image's file name at DashScope, without extension in the key
	Date       time.Time // becomes 2006-01-02 in its own zone; should be the job's creation, so that a retry gets the same key
	Ext        string    // with its dot; "" is .png
}

var (
	jobIDPattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`)
	varPattern   = regexp.MustCompile(`\{[^{}]*\}`)
	// numberPattern finds an {n} whose digits nothing else can add to.
	numberPattern = regexp.MustCompile(`(^|[^}0-9])\{n\}($|\{ext\}|[^{0-9])`)
	extPattern    = regexp.MustCompile(`^\.[A-Za-z0-9]{1,10}$`)
)

// template is a key template that parseTemplate has accepted.
type template string

func parseTemplate(s string) (template, error) {
	seen := map[string]bool{}
	for _, v := range varPattern.FindAllString(s, -1) {
		switch v {
		case "{job_id}", "{n}", "{batch}", "{id}", "{model}", "{date}", "{ext}", "{source_name}":
			seen[v] = true
		default:
			return "", fmt.Errorf("knows no %s: use {job_id} {n} {batch} {id} {model} {date} {ext} {source_name}", v)
		}
	}
	if !seen["{job_id}"] || !seen["{n}"] {
		return "", errors.New("must hold {job_id} and {n}, else images would overwrite each other")
	}
	if rest := varPattern.ReplaceAllString(s, ""); strings.ContainsAny(rest, "{}") || !cleanText(rest) {
		return "", errors.New("has a stray brace, backslash or control character: remove it")
	}
	if !numberPattern.MatchString(s) {
		return "", errors.New("{n} must stand between text, slashes or the end, as in -{n}{ext}, else two images could get the same key")
	}
	unique := false
	for i, segment := range strings.Split(s, "/") {
		switch {
		case segment == "" || segment == "." || segment == "..":
			return "", errors.New("has an empty folder, . or ..: remove it")
		case i == 0 && strings.HasPrefix(segment, "_"):
			return "", errors.New("begins with _: those folders are ours, choose another name")
		}
		tail, ok := strings.CutPrefix(segment, "{job_id}")
		tail = strings.NewReplacer("{n}", "", "{ext}", "").Replace(tail)
		unique = unique || ok && !strings.Contains(tail, "{")
	}
	if !unique {
		return "", errors.New("{job_id} must begin a path segment and be followed there only by text, {n} and {ext}, else two jobs could get the same key; write {batch}/{job_id}-{n}{ext}")
	}
	return template(s), nil
}

// ImageKey returns the key of an image by the template, prefix included. Equal
// vars give equal keys, and other jobs other keys. Values other than the job's
// ID are cut to 64 bytes, and what would change the folder in them becomes _.
// It fails if JobID or N is invalid, and for no other reason.
func (b *Bucket) ImageKey(vars KeyVars) (string, error) {
	if err := checkJobID(vars.JobID); err != nil {
		return "", err
	}
	if vars.N < 1 || vars.N > maxN {
		return "", fmt.Errorf("image of job %s: n %d must be 1 to %d", vars.JobID, vars.N, maxN)
	}
	return b.prefix + b.template.key(vars), nil
}

func (t template) key(vars KeyVars) string {
	ext := vars.Ext
	if !extPattern.MatchString(ext) {
		ext = ".png"
	}
	name := vars.SourceName
	if i := strings.LastIndexByte(name, '.'); i > 0 {
		name = name[:i]
	}
	key := strings.NewReplacer(
		"{job_id}", vars.JobID, "{n}", strconv.Itoa(vars.N), "{ext}", ext,
		"{batch}", keyValue(vars.Batch), "{id}", keyValue(vars.ID), "{model}", keyValue(vars.Model),
		"{date}", vars.Date.Format(time.DateOnly), "{source_name}", keyValue(name),
	).Replace(string(t))

	segments := strings.Split(key, "/")
	for i, s := range segments {
		// Job IDs may look like folders of ours or of the file system; no
		// job ID has a tilde, so that the key stays its own.
		if s == "." || s == ".." || i == 0 && strings.HasPrefix(s, "_") {
			segments[i] = "~" + s
		}
	}
	return strings.Join(segments, "/")
}

// checkLength makes sure that no job can have a key that is too long for S3
// or, segment by segment, for a file system: it would be found out when the
// image is paid.
func (t template) checkLength(prefix string) error {
	long := strings.Repeat("x", 2*maxVarBytes)
	key := prefix + t.key(KeyVars{JobID: strings.Repeat("x", 128), N: maxN, Batch: long, ID: long, Model: long, SourceName: long, Ext: ".xxxxxxxxxx"})
	if len(key) > maxKeyBytes {
		return fmt.Errorf("makes keys of up to %d bytes with the prefix, S3 allows %d: shorten it", len(key), maxKeyBytes)
	}
	for s := range strings.SplitSeq(key, "/") {
		if len(s) > maxNameBytes-1 { // one for the tilde
			return fmt.Errorf("makes names of up to %d bytes, file systems allow %d: put a / between its parts", len(s), maxNameBytes)
		}
	}
	return nil
}

// keyValue makes s fit to be part of one path segment on any file system.
func keyValue(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError || strings.ContainsRune(`/\<>:"|?*`, r) {
			return '_'
		}
		return r
	}, s)
	for len(s) > maxVarBytes {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	if s == "" {
		return "-"
	}
	return s
}

// HeldKey is where [Bucket.Hold] puts name of a task.
func (b *Bucket) HeldKey(taskID, name string) string {
	segment := func(s string) string {
		if s = keyValue(s); s == "." || s == ".." {
			return "~" + s
		}
		return s
	}
	return b.prefix + heldFolder + segment(taskID) + "/" + segment(name)
}

func (b *Bucket) sidecarKey(jobID string) string { return b.prefix + sidecarFolder + jobID + ".json" }

func checkJobID(id string) error {
	if !jobIDPattern.MatchString(id) {
		return fmt.Errorf("job ID %q: must match [A-Za-z0-9._-]{1,128}", id)
	}
	return nil
}

// Link returns a URL by which anybody can read an object: below PublicURL, and
// then forever (expiresAt is zero), or else presigned for [LinkLifetime]. It
// asks nothing of the store; the object need not exist.
func (b *Bucket) Link(ctx context.Context, key string) (link string, expiresAt time.Time, err error) {
	if b.publicURL != "" {
		segments := strings.Split(key, "/")
		for i, s := range segments {
			segments[i] = url.PathEscape(s)
		}
		return b.publicURL + "/" + strings.Join(segments, "/"), time.Time{}, nil
	}
	// Signing rounds to the second, downwards.
	expiresAt = time.Now().Truncate(time.Second).Add(LinkLifetime)
	req, err := b.presign.PresignGetObject(ctx, &s3.GetObjectInput{Bucket: &b.name, Key: &key}, s3.WithPresignExpires(LinkLifetime))
	if err != nil {
		return "", time.Time{}, fmt.Errorf("presign %s: %w", key, err)
	}
	return req.URL, expiresAt, nil
}
