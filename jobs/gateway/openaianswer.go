package gateway

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/jobs"
)

// jobError is the error for a job without images. Its status keeps clients from retrying.
func jobError(rec *jobs.Job) *apiError {
	code := rec.Code
	if strings.HasPrefix(code, "DataInspectionFailed") || code == "IPInfringementSuspect" {
		code = "content_policy_violation"
	}
	return newAPIError(http.StatusBadRequest, code, rec.Message, 0)
}

// sendImages answers with a job's images: links, or the bytes in base64, which are streamed
// from the bucket.
func (a *api) sendImages(w http.ResponseWriter, r *request, asked generation, rec *jobs.Job) error {
	type datum struct {
		URL           string `json:"url,omitempty"`
		RevisedPrompt string `json:"revised_prompt,omitempty"`
	}
	var data []datum
	var images []jobs.Image
	for _, image := range rec.Images {
		if image.Key == "" {
			continue
		}
		d := datum{RevisedPrompt: image.ActualPrompt}
		if !asked.encoded {
			var err error
			if d.URL, err = a.imageURL(r.Request, rec, image); err != nil {
				return err
			}
		}
		data, images = append(data, d), append(images, image)
	}
	answer := struct {
		Created int64   `json:"created"`
		Data    []datum `json:"data"`
	}{rec.FinishedAt.Unix(), data}
	if !asked.encoded {
		writeAnswer(w, http.StatusOK, answer)
		return nil
	}
	prompts := make([]string, len(data))
	for i, d := range data {
		prompts[i] = d.RevisedPrompt
	}
	end := "]}\n"
	if isGPTImage(asked.alias) && len(images) > 0 {
		end = "]," + gptImageFields(images[0]) + "}\n"
	}
	return a.sendBase64Images(w, r, rec, images, prompts, end)
}

// gptImageUsage is the usage in an answer of OpenAI's GPT image models. DashScope charges for
// images: there are no tokens. Clients read the fields all the same.
const gptImageUsage = `"usage":{"input_tokens":0,"input_tokens_details":{"image_tokens":0,"text_tokens":0},"output_tokens":0,"output_tokens_details":{"image_tokens":0,"text_tokens":0},"total_tokens":0}`

// gptImageFields are the fields that an answer of OpenAI's GPT image models has beside the images
// (ImagesResponse of its API reference). The quality is the highest of its three: the models have
// but one.
func gptImageFields(image jobs.Image) string {
	return fmt.Sprintf(`"background":"opaque","output_format":%q,"quality":"high","size":"%dx%d",%s`, image.Format(), image.Width, image.Height, gptImageUsage)
}

// sendBase64Images answers with images in base64, and end after them. It sets the Content-Length, so that the
// client has the complete answer with its last byte, and not only after the handler has
// returned: by then the dedupe key is released.
func (a *api) sendBase64Images(w http.ResponseWriter, r *request, rec *jobs.Job, images []jobs.Image, prompts []string, end string) error {
	var bodies []io.ReadCloser
	defer func() {
		for _, body := range bodies {
			_ = body.Close() // read only
		}
	}()
	before := make([]string, len(images))
	length := int64(len(end))
	for i, image := range images {
		body, info, err := a.cfg.Bucket.Get(r.Context(), image.Key)
		if err != nil {
			return err
		}
		bodies = append(bodies, body)
		revised := ""
		if prompts[i] != "" {
			encoded, _ := json.Marshal(prompts[i]) // a string
			revised = `"revised_prompt":` + string(encoded) + ","
		}
		before[i] = ",{" + revised + `"b64_json":"`
		if i == 0 {
			before[i] = fmt.Sprintf(`{"created":%d,"data":[%s`, rec.FinishedAt.Unix(), before[i][1:])
		}
		length += int64(len(before[i])+len(imageEnd)) + (info.Bytes+2)/3*4
	}
	control := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Content-Length", strconv.FormatInt(length, 10))
	for i, body := range bodies {
		_ = control.SetWriteDeadline(time.Now().Add(writeTimeout)) // unsupported in tests
		if err := writeBase64(w, before[i], body); err != nil {
			a.log.Warn("image response aborted", "job_id", rec.ID, "key", images[i].Key, "err", err)
			panic(http.ErrAbortHandler) // a truncated answer must not look complete
		}
	}
	_, _ = io.WriteString(w, end) // the caller checks Flush
	return nil
}

// imageEnd follows an image's base64.
const imageEnd = `"}`

func writeBase64(w io.Writer, before string, body io.Reader) error {
	if _, err := io.WriteString(w, before); err != nil {
		return err
	}
	enc := base64.NewEncoder(base64.StdEncoding, w)
	if _, err := io.Copy(enc, body); err != nil {
		return err
	}
	if err := enc.Close(); err != nil {
		return err
	}
	_, err := io.WriteString(w, imageEnd)
	return err
}
