package gateway

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
)

const (
	// maxEditBytes limits a form with images. The value is our choice: the models take up to nine
	// images of 10 to 20 MB.
	maxEditBytes = 64 << 20
	// maxEditJSON limits a JSON body with images, which is held in memory. OpenAI's limit of one
	// image in it is 20 MiB.
	maxEditJSON = 24 << 20
	// maxEditFiles limits the images of a request: OpenAI's limit, and a mask.
	maxEditFiles = 16 + 1
	// maxImageBytes limits one image, until its model is known.
	maxImageBytes = 20 << 20
)

// editInput is the body of a request with images: a form, or JSON.
type editInput struct {
	api       *api
	r         *request
	fields    map[string]json.RawMessage // all others
	list      string                     // the name of all images
	images    []*editImage
	mask      *editImage // nil if there is none
	converted string     // file of the mask as DashScope has it
}

// editImage is an image of the request: a file, or a URL.
type editImage struct {
	field string             // its name in the body
	name  string             // its name in the job
	path  string             // its temporary file, "" of a URL
	ref   *storage.Reference // of the file, once it was checked
}

// all returns the images and the mask.
func (in *editInput) all() []*editImage {
	if in.mask == nil {
		return in.images
	}
	return append(slices.Clone(in.images), in.mask)
}

func (in *editInput) imageNames() []string {
	names := make([]string, len(in.images))
	for i, image := range in.images {
		names[i] = image.name
	}
	return names
}

// names returns the client's names of the fields.
func (in *editInput) names() fieldNames {
	n := fieldNames{given: map[string]string{"ref_images": in.list, "mask_image_url": "mask"}}
	for _, image := range in.images {
		n.images = append(n.images, image.field)
	}
	return n
}

// identity returns what tells the request from others: that of its repeats is the same, whatever
// separates the parts of their forms.
func (in *editInput) identity() []byte {
	mask := ""
	if in.mask != nil {
		mask = in.mask.name
	}
	encoded, _ := json.Marshal([]any{in.r.URL.Path, in.fields, in.imageNames(), mask}) // the keys of maps are sorted
	return encoded
}

// read reads the body.
func (in *editInput) read(w http.ResponseWriter) error {
	kind, _, err := mime.ParseMediaType(in.r.Header.Get("Content-Type"))
	isForm := err == nil && strings.HasPrefix(kind, "multipart/")
	limit := int64(maxEditJSON)
	if in.list = "images"; isForm {
		in.list, limit = "image", maxEditBytes
	}
	control := http.NewResponseController(w)
	body := &deadlineReader{ReadCloser: in.r.Body, control: control, end: time.Now().Add(uploadTimeout), left: limit + 1}
	in.r.Body = http.MaxBytesReader(w, body, limit)
	if isForm {
		err = in.readForm()
	} else {
		err = in.readJSON()
	}
	if err != nil {
		return err
	}
	_ = control.SetReadDeadline(time.Time{}) // net/http must notice a disconnect during the wait
	if len(in.images) == 0 {
		return &jobs.InvalidError{Fields: []jobs.FieldError{{Field: "image", Value: "missing", Allowed: "a file of a form, multipart/form-data, or several as image[]; in JSON " + imagesSample}}}
	}
	return nil
}

const imagesSample = `"images": [{"image_url": "https://…"}], or a data: URL`

// imageField matches the names of images in a form: the SDKs write image, and image[] of several.
var imageField = regexp.MustCompile(`^image(\[[0-9]*\])?$`)

func (in *editInput) readForm() error {
	form, err := in.r.MultipartReader()
	if err != nil {
		return newAPIError(http.StatusBadRequest, codeParameter, "the body must be a form, multipart/form-data, or JSON", 0)
	}
	for parts := 0; ; parts++ {
		part, err := form.NextPart()
		if errors.Is(err, io.EOF) {
			in.nameImages()
			if _, err := io.Copy(io.Discard, in.r.Body); err != nil { // what follows the last part
				return formError(err)
			}
			return nil
		}
		if err != nil {
			return formError(err)
		}
		name := part.FormName()
		switch {
		case parts >= maxFormFields+maxEditFiles:
			return newAPIError(http.StatusBadRequest, codeParameter, "the form has too many fields", 0)
		case imageField.MatchString(name) && len(in.images) < maxEditFiles-1:
			image := &editImage{field: name}
			in.images = append(in.images, image)
			err = in.receive(image, part)
		case name == "mask" && in.mask == nil:
			in.mask = &editImage{field: name}
			err = in.receive(in.mask, part)
		default:
			err = in.readField(name, part)
		}
		if err != nil {
			return err
		}
	}
}

// nameImages numbers the images of a form that has several.
func (in *editInput) nameImages() {
	for i, image := range in.images {
		if len(in.images) > 1 {
			image.field = fmt.Sprintf("image[%d]", i)
		}
	}
}

// textFields are the fields that are texts, also if one looks like a number.
func textFields() []string {
	return []string{
		"model", "prompt", "negative_prompt", "user", "size", "style", "quality", "background", "moderation", "input_fidelity", "response_format", "output_format",
		"priority", "callback", "not_before", "deadline", "ref_mode", "function", "prompt_extend_mode",
	}
}

// readField reads a field that is no file. An empty one is absent.
func (in *editInput) readField(name string, part *multipart.Part) error {
	value, err := io.ReadAll(io.LimitReader(part, maxCreateBytes+1))
	if err != nil {
		return formError(err)
	}
	wrong := func(value, remedy string) error {
		return &jobs.InvalidError{Fields: []jobs.FieldError{{Field: strings.ToValidUTF8(name[:min(len(name), 64)], ""), Value: value, Remedy: remedy}}}
	}
	_, twice := in.fields[name]
	switch {
	case twice, name == "mask", imageField.MatchString(name):
		return wrong("is given too often", "")
	case len(value) > maxCreateBytes:
		return wrong("is too long", "")
	case len(value) == 0:
		return nil
	case json.Valid(value) && !slices.Contains(textFields(), name):
		in.fields[name] = value
	default:
		in.fields[name], _ = json.Marshal(string(value)) // a string
	}
	return nil
}

// receive writes an image into a temporary file.
func (in *editInput) receive(to *editImage, content io.Reader) error {
	file, err := os.CreateTemp(in.api.cfg.TempDir, "danqing-upload-*")
	if err != nil {
		return fmt.Errorf("receive image: %w", err)
	}
	to.path = file.Name()
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(file, sum), io.LimitReader(content, maxImageBytes+1))
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	switch path := (*os.PathError)(nil); {
	case errors.As(err, &path):
		return fmt.Errorf("receive image: %w", err)
	case err != nil:
		return formError(err)
	case n > maxImageBytes:
		return &jobs.InvalidError{Fields: []jobs.FieldError{{Field: to.field, Value: "the image", Allowed: fmt.Sprintf("at most %d bytes", maxImageBytes)}}}
	}
	to.name = jobs.StagedPrefix + hex.EncodeToString(sum.Sum(nil))
	return nil
}

// readJSON reads the JSON form of OpenAI's edits (EditImageBodyJsonParam of its OpenAPI
// description): images and mask are objects with an image_url.
func (in *editInput) readJSON() error {
	body, err := io.ReadAll(in.r.Body)
	if err != nil {
		return formError(err)
	}
	if err := json.Unmarshal(body, &in.fields); err != nil {
		return newAPIError(http.StatusBadRequest, codeParameter, fmt.Sprintf("the body is neither a form, multipart/form-data, nor a JSON object: %v", err), 0)
	}
	if in.fields == nil { // null
		in.fields = map[string]json.RawMessage{}
	}
	var images []json.RawMessage
	if value, given := in.fields["images"]; given && (json.Unmarshal(value, &images) != nil || len(images) > maxEditFiles-1) {
		return &jobs.InvalidError{Fields: []jobs.FieldError{{Field: "images", Value: "is not a list of images", Allowed: imagesSample}}}
	}
	for i, value := range images {
		image := &editImage{field: fmt.Sprintf("images[%d]", i)}
		in.images = append(in.images, image)
		if err := in.readImageURL(image, value); err != nil {
			return err
		}
	}
	if value := in.fields["mask"]; len(value) > 0 && string(value) != "null" {
		in.mask = &editImage{field: "mask"}
		if err := in.readImageURL(in.mask, value); err != nil {
			return err
		}
	}
	delete(in.fields, "images")
	delete(in.fields, "mask")
	return nil
}

// readImageURL reads an image of a JSON body: the URL of one, or one in base64.
func (in *editInput) readImageURL(to *editImage, value json.RawMessage) error {
	wrong := func(value, allowed string) error {
		return &jobs.InvalidError{Fields: []jobs.FieldError{{Field: to.field, Value: value, Allowed: allowed}}}
	}
	var entry struct {
		ImageURL string `json:"image_url"`
		FileID   string `json:"file_id"`
	}
	err := json.Unmarshal(value, &entry)
	switch {
	case err == nil && entry.FileID != "":
		return wrong("a file_id", "an image_url: Danqing has no files API")
	case err != nil || entry.ImageURL == "":
		return wrong("is not an image", `{"image_url": "https://…"}, or with a data: URL`)
	}
	to.field += ".image_url"
	encoded, isData := strings.CutPrefix(entry.ImageURL, dataScheme)
	if !isData {
		to.name = strings.TrimSpace(entry.ImageURL)
		return nil
	}
	kind, encoded, found := strings.Cut(encoded, ",")
	if !found || !strings.HasSuffix(kind, ";base64") {
		return wrong("a data: URL", "data:image/png;base64,…")
	}
	content, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return wrong("a data: URL", "base64 after the comma")
	}
	return in.receive(to, bytes.NewReader(content))
}

// writeMask writes the mask at path in DashScope's form into a new file.
func writeMask(path, dir string) (converted string, err error) {
	file, err := os.Open(path) //nolint:gosec // a temporary file of this process
	if err != nil {
		return "", fmt.Errorf("read mask: %w", err)
	}
	mask, _, err := image.Decode(file)
	_ = file.Close() // read only
	if err != nil {
		return "", &unfitError{"broken: " + err.Error()}
	}
	bounds := mask.Bounds()
	paper := image.NewGray(image.Rect(0, 0, bounds.Dx(), bounds.Dy()))
	some := false
	for y := range bounds.Dy() {
		for x := range bounds.Dx() {
			if _, _, _, alpha := mask.At(bounds.Min.X+x, bounds.Min.Y+y).RGBA(); alpha == 0 {
				some = true
				paper.SetGray(x, y, color.Gray{Y: 0xff})
			}
		}
	}
	if !some {
		return "", &unfitError{"has no transparent pixel: make those transparent that are to be edited"}
	}
	out, err := os.CreateTemp(dir, "danqing-upload-*")
	if err != nil {
		return "", fmt.Errorf("convert mask: %w", err)
	}
	err = png.Encode(out, paper)
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return out.Name(), fmt.Errorf("convert mask: %w", err)
	}
	return out.Name(), nil
}

// withoutPath returns an error without the name of a temporary file.
func withoutPath(err error, path string) error {
	return errors.New(strings.ReplaceAll(err.Error(), "reference image "+path+": ", ""))
}
