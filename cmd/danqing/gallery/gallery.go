// Package gallery writes a page that shows the images of a batch side by side, with what was
// asked for and what has become of it. The page is one file without references to anything
// but the images, so that it works from a disk, from a bucket and on a phone.
package gallery

import (
	"bufio"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"html"
	"io"
	"strings"
	"time"
)

// Gallery is what a page shows.
type Gallery struct {
	// Title is the batch's name.
	Title string `json:"-"`
	// Key tells the marks of a batch from those of others in the same browser.
	Key string `json:"key"`
	// File is the beginning of the names of exported files.
	File      string    `json:"file"`
	Simulated bool      `json:"simulated,omitempty"`
	Time      time.Time `json:"time"`
	// CostYuan is what all lines have cost.
	CostYuan float64 `json:"yuan"`
	// LinksExpireAt is when the first link to an image expires; zero means never.
	LinksExpireAt time.Time `json:"expires,omitzero"`
	Lines         []Line    `json:"lines"`
}

// Line is a line of a batch, and what has become of its job.
type Line struct {
	JobID  string `json:"job"`
	ID     string `json:"id,omitempty"` // the line's own
	Prompt string `json:"prompt"`
	State  string `json:"state"` // of the job
	// Reason says why there is no image.
	Reason   string  `json:"reason,omitempty"`
	CostYuan float64 `json:"cost,omitempty"`
	Images   []Image `json:"images,omitempty"`
	// Raw is the line of the batch file, a JSON object. The page exports it byte for byte.
	Raw string `json:"raw"`
	// Redo is a line that makes the images again with another seed; "" if there is none.
	Redo string `json:"redo,omitempty"`
}

// Image is one image, or the reason why it is missing.
type Image struct {
	N int `json:"n"`
	// Sources are URLs of the image, relative to the page or absolute. They are tried in turn.
	Sources      []string `json:"sources,omitempty"`
	Name         string   `json:"name,omitempty"`
	Width        int      `json:"width,omitempty"`
	Height       int      `json:"height,omitempty"`
	Seed         int64    `json:"seed"`
	ActualPrompt string   `json:"actual,omitempty"`
	Reason       string   `json:"reason,omitempty"`
}

//go:embed gallery.html
var page string

//go:embed gallery.css
var style string

//go:embed gallery.js
var script string

// Write writes the page.
func (g *Gallery) Write(w io.Writer) error {
	out := bufio.NewWriter(w)
	for part := range strings.SplitSeq(page, "{{") {
		name, text, isPart := strings.Cut(part, "}}")
		switch {
		case !isPart:
			text = part
		case name == "title":
			_, _ = out.WriteString(html.EscapeString(g.Title)) // Flush reports the errors
		case name == "policy":
			_, _ = out.WriteString(html.EscapeString(policy()))
		case name == "style":
			_, _ = out.WriteString(style)
		case name == "script":
			_, _ = out.WriteString(script)
		case name == "data": // the encoder escapes <, > and &
			if err := json.NewEncoder(out).Encode(g); err != nil {
				return err
			}
		}
		_, _ = out.WriteString(text)
	}
	return out.Flush()
}

// policy returns a Content-Security-Policy that allows the page its own style and script, and
// images from anywhere. It makes no other request.
func policy() string {
	hash := func(text string) string {
		sum := sha256.Sum256([]byte(text))
		return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	}
	return "default-src 'none'; base-uri 'none'; form-action 'none'; img-src 'self' file: http: https:; style-src " + hash(style) + "; script-src " + hash(script)
}
