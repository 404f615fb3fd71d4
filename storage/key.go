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
	"unicode"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/danqing-queue/danqing/jobs/jobid"
)

// Folders below the prefix that hold no images. No key template can produce a
// key in them.
const (
	sidecarFolder   = "_jobs/"
	referenceFolder = "_refs/"
	heldFolder      = "_held/"
)

// maxKeyBytes is S3's limit on a key (user guide, "Creating object key names").
const maxKeyBytes = 1024

// maxNameBytes is the limit of Linux and macOS on a file name (NAME_MAX). The
// embedded store keeps objects as files under their keys.
const maxNameBytes = 255

// maxN is the largest image number within a job: two digits, more than any model
// makes in one task.
const maxN = 99

// maxVarBytes is the length to which a value in a key is truncated, so that a path
// segment with up to three of them stays below the 255 bytes of a file name.
const maxVarBytes = 64

// LinkLifetime is how long a presigned link is valid: the maximum of SigV4,
// 604,800 s (AWS CLI reference, s3 presign). A link that was signed with
// temporary credentials expires with them, if that is earlier.
const LinkLifetime = 7 * 24 * time.Hour

// KeyVars are the values for the variables of the key template.
type KeyVars struct {
	JobID      string    // required, see jobs.ValidID
	N          int       // required, 1 to 99
	Batch      string    // "-" in the key if empty, like ID, Model and SourceName
	ID         string    // the line's own ID in its batch
	Model      string    // such as wanx-v1
	SourceName string    // the image's file name at DashScope, without extension in the key
	Date       time.Time // formatted as 2006-01-02 in its own zone; should be the job's creation, so that a retry gets the same key
	Ext        string    // with its dot; "" is .png
}

var (
	varPattern = regexp.MustCompile(`\{[^{}]*\}`)
	// numberPattern matches an {n} with no other digits next to it.
	numberPattern = regexp.MustCompile(`(^|[^}0-9])\{n\}($|\{ext\}|[^{0-9])`)
	extPattern    = regexp.MustCompile(`^\.[A-Za-z0-9]{1,10}$`)
)

// template is a key template that checkTemplate accepted.
type template string

// checkTemplate fails unless s gives every image of every job a valid key of its own
// below the prefix.
func checkTemplate(s, prefix string) error {
	seen := map[string]bool{}
	for _, v := range varPattern.FindAllString(s, -1) {
		switch v {
		case "{job_path}", "{job_id}", "{n}", "{batch}", "{id}", "{model}", "{date}", "{ext}", "{source_name}":
			seen[v] = true
		default:
			return fmt.Errorf("has an unknown variable %s: use {job_path} {job_id} {n} {batch} {id} {model} {date} {ext} {source_name}", v)
		}
	}
	if !seen["{job_path}"] && !seen["{job_id}"] || !seen["{n}"] {
		return errors.New("must hold {job_path} or {job_id}, and {n}, else images would overwrite each other")
	}
	if rest := varPattern.ReplaceAllString(s, ""); strings.ContainsAny(rest, "{}") || !cleanText(rest) {
		return errors.New("has a stray brace, backslash or control character: remove it")
	}
	if !numberPattern.MatchString(s) {
		return errors.New("{n} must stand between text, slashes or the end, as in -{n}{ext}, else two images could get the same key")
	}
	unique := false
	for i, segment := range strings.Split(s, "/") {
		switch {
		case segment == "" || segment == "." || segment == "..":
			return errors.New("has an empty folder, . or ..: remove it")
		case i == 0 && strings.HasPrefix(segment, "_"):
			return errors.New("begins with _: those folders are reserved, choose another name")
		}
		tail, ok := strings.CutPrefix(segment, "{job_path}")
		if !ok {
			tail, ok = strings.CutPrefix(segment, "{job_id}")
		}
		tail = strings.NewReplacer("{n}", "", "{ext}", "").Replace(tail)
		unique = unique || ok && !strings.Contains(tail, "{")
	}
	if !unique {
		return errors.New("{job_path} or {job_id} must begin a path segment and be followed there only by text, {n} and {ext}, else two jobs could get the same key; write {date}/{job_path}-{n}{ext}")
	}
	return template(s).checkLength(prefix)
}

// ImageKey returns the key of an image by the template, prefix included. Equal
// vars give equal keys, and different jobs get different keys. Values other than
// the job's ID are truncated to 64 bytes, and characters in them that file systems
// do not allow become _. It fails only if JobID or N is invalid.
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
		"{job_path}", jobPath(vars.JobID), "{job_id}", vars.JobID, "{n}", strconv.Itoa(vars.N), "{ext}", ext,
		"{batch}", keyValue(vars.Batch), "{id}", keyValue(vars.ID), "{model}", keyValue(vars.Model),
		"{date}", vars.Date.Format(time.DateOnly), "{source_name}", keyValue(name),
	).Replace(string(t))

	segments := strings.Split(key, "/")
	for i, s := range segments {
		// A job ID may begin like a reserved folder, and another value may be a device.
		// No ID contains a tilde, so the key stays unique.
		if i == 0 && strings.HasPrefix(s, "_") || jobid.Device(s) {
			segments[i] = "~" + s
		}
	}
	return strings.Join(segments, "/")
}

// singleFolder is the folder of the images of jobs whose ID has no dot.
const singleFolder = "single"

// jobPath returns the job's ID with its last dot as a slash, and single/ID if it has none.
// Different IDs have different paths: no ID contains a tilde.
func jobPath(jobID string) string {
	folder, name := jobid.Split(jobID)
	switch {
	case folder == "":
		folder = singleFolder
	case strings.EqualFold(folder, singleFolder): // some disks cannot tell names apart by case
		folder = "~" + folder
	}
	return folder + "/" + name
}

// checkLength fails if some job could get a key that is too long for S3, or has a
// segment that is too long for a file system. Without the check, that error would
// appear only after the image was paid for.
func (t template) checkLength(prefix string) error {
	long := strings.Repeat("x", 2*maxVarBytes)
	id := strings.Repeat("x", jobid.MaxBytes) // longer than any folder or name
	key := prefix + t.key(KeyVars{JobID: id, N: maxN, Batch: long, ID: long, Model: long, SourceName: long, Ext: ".xxxxxxxxxx"})
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

// keyValue turns s into a valid part of one path segment on any file system.
func keyValue(s string) string { return cleanName(s, maxVarBytes) }

// cleanName turns s into a valid file name on any file system, or a part of one.
func cleanName(s string, maxBytes int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.In(r, unicode.C) || r == utf8.RuneError || strings.ContainsRune(`/\<>:"|?*`, r) {
			return '_'
		}
		return r
	}, s)
	for len(s) > maxBytes {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	if s = strings.Trim(s, ". "); s == "" {
		return "-"
	}
	return s
}

// HeldKey returns the key under which [Bucket.Quarantine] stores the file name of a task.
func (b *Bucket) HeldKey(taskID, name string) string {
	return b.heldFolder(taskID) + cleanName(name, maxNameBytes)
}

func (b *Bucket) heldFolder(taskID string) string {
	return b.prefix + heldFolder + keyValue(taskID) + "/"
}

// maxHeldKeys is more than the images of any task.
const maxHeldKeys = 32

// HeldKeys returns the keys of what [Bucket.Quarantine] has stored of a task,
// in order; at most 32. It fails if the bucket does not answer.
func (b *Bucket) HeldKeys(ctx context.Context, taskID string) ([]string, error) {
	page, err := b.client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &b.name, Prefix: aws.String(b.heldFolder(taskID)), MaxKeys: aws.Int32(maxHeldKeys)})
	if err != nil {
		return nil, fmt.Errorf("list the images held of task %s: %w", taskID, b.explain(err))
	}
	var keys []string
	for _, object := range page.Contents {
		keys = append(keys, aws.ToString(object.Key))
	}
	return keys, nil
}

func (b *Bucket) sidecarKey(jobID string) string { return b.prefix + sidecarFolder + jobID + ".json" }

func checkJobID(id string) error {
	if !jobid.Valid(id) {
		return fmt.Errorf("job ID %q: must be 1 to %d bytes of letters and digits, _, - and single dots between them", id, jobid.MaxBytes)
	}
	return nil
}

// Link returns a URL by which anybody can read an object. It is a permanent URL
// below PublicURL if that is set (expiresAt is zero then), otherwise a presigned
// one, valid for [LinkLifetime]. Link sends no request; the object need not exist.
func (b *Bucket) Link(ctx context.Context, key string) (link string, expiresAt time.Time, err error) {
	if b.publicURL != "" {
		segments := strings.Split(key, "/")
		for i, s := range segments {
			segments[i] = url.PathEscape(s)
		}
		return b.publicURL + "/" + strings.Join(segments, "/"), time.Time{}, nil
	}
	// The signature has whole seconds, rounded down.
	expiresAt = time.Now().Truncate(time.Second).Add(LinkLifetime)
	req, err := b.presign.PresignGetObject(ctx, &s3.GetObjectInput{Bucket: &b.name, Key: &key}, s3.WithPresignExpires(LinkLifetime))
	if err != nil {
		return "", time.Time{}, fmt.Errorf("presign %s: %w", key, err)
	}
	return req.URL, expiresAt, nil
}
