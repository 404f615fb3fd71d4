package gateway

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/storage"
)

// variationPrompt is the prompt of a variation: OpenAI's API has none, and every model needs one.
const variationPrompt = "Make a variation of this picture: keep its subject, style and composition, and change the details."

// Functions of wanx2.1-imageedit that edit by a prompt, like OpenAI's edits.
const (
	functionEdit     = "description_edit"
	functionEditMask = "description_edit_with_mask"
)

// edits edits images while the client waits, like OpenAI's API.
func (a *api) edits(w http.ResponseWriter, r *request) (any, error) {
	return a.edit(w, r, "")
}

// variations makes variations of an image while the client waits, like OpenAI's API.
func (a *api) variations(w http.ResponseWriter, r *request) (any, error) {
	return a.edit(w, r, variationPrompt)
}

// edit answers a request with images. The prompt is the client's, unless one is given here.
func (a *api) edit(w http.ResponseWriter, r *request, prompt string) (any, error) {
	asked, err := a.readEdit(w, r, prompt)
	if err != nil {
		return nil, asked.names.rename(err)
	}
	return a.serveImages(w, r, asked)
}

// readEdit reads a request with images, checks it, and stages the images. Nothing was queued.
func (a *api) readEdit(w http.ResponseWriter, r *request, prompt string) (asked generation, err error) {
	release, err := a.shares[r.caller.Name].transfers.acquire(r.Context())
	if err != nil {
		return asked, err
	}
	defer release()
	in := &editInput{api: a, r: r, fields: map[string]json.RawMessage{}}
	defer in.removeFiles()
	if err := in.read(w); err != nil {
		return asked, err
	}
	for _, name := range []string{"ref_img", "ref_images", "mask_image_url"} {
		if _, given := in.fields[name]; given {
			return asked, &jobs.InvalidError{Fields: []jobs.FieldError{{Field: name, Value: "is given", Remedy: "here the images are image and mask, or images and mask of a JSON body"}}}
		}
	}
	if prompt != "" {
		if err := in.setPrompt(prompt); err != nil {
			return asked, err
		}
	}
	identity := in.identity()
	chosen, err := a.setEditModel(r.Context(), in)
	if err != nil {
		return asked, err
	}
	asked, err = parseFields(in.fields, a.cfg.Aliases)
	asked.identity, asked.names, asked.event, asked.chooseModel = identity, in.names(), "image_edit.completed", chosen
	if err != nil {
		return asked, err
	}
	asked.request.RefImages = in.imageNames()
	if in.mask != nil {
		asked.request.MaskImageURL = in.mask.name
	}
	setEditFunction(&asked.request)
	if err := in.check(asked.request); err != nil {
		return asked, err
	}
	return asked, in.stage(&asked.request)
}

// setPrompt sets the prompt of a request that must have none.
func (in *editInput) setPrompt(prompt string) error {
	wrong := &jobs.InvalidError{}
	for _, field := range []string{"prompt", "mask"} {
		if _, given := in.fields[field]; given || field == "mask" && in.mask != nil {
			wrong.Fields = append(wrong.Fields, jobs.FieldError{Field: field, Value: "is given", Remedy: "a variation has none: use /v1/images/edits"})
		}
	}
	if len(wrong.Fields) > 0 {
		return wrong
	}
	in.fields["prompt"], _ = json.Marshal(prompt) // a string
	return nil
}

// setEditModel chooses the model of a request that names none.
func (a *api) setEditModel(ctx context.Context, in *editInput) (chosen bool, err error) {
	if value, given := in.fields["model"]; given && !slices.Contains([]string{"null", `""`}, string(value)) {
		var named string
		if json.Unmarshal(value, &named) == nil && a.cfg.Aliases[strings.TrimSpace(named)] == "" { // else it is refused as no text
			_, err = findModel(named)
		}
		return false, err
	}
	in.fields["model"], _ = json.Marshal(a.editingModel(ctx, len(in.images), in.mask != nil)) // a string
	return true, nil
}

// setEditFunction sets the function of a request for a model with functions that names none.
func setEditFunction(req *jobs.Request) {
	m, _ := jobs.ModelNamed(req.Model)
	if len(m.Functions) == 0 || req.Function != "" {
		return
	}
	if req.Function = functionEdit; req.MaskImageURL != "" {
		req.Function = functionEditMask
	}
}

// editingModel returns the model of an edit that names none: the first in the catalog's order that
// a worker works on and that takes so many images, and the mask if there is one. The models that
// edit by a prompt alone are preferred to those with functions, and these to wanx-v1, whose picture
// is like its reference. If there is none, the request is refused for [jobs.DefaultModel].
func (a *api) editingModel(ctx context.Context, images int, mask bool) string {
	best, bestRank := "", 3
	for _, m := range a.workedModels(ctx, slotCacheLifetime) {
		rank := 0
		switch {
		case mask && !m.Honors("mask_image_url"):
			continue
		case m.Inputs.Max == 0 && images == 1 && m.Honors("ref_img"):
			rank = 2
		case images < m.Inputs.Min, images > m.Inputs.Max:
			continue
		case len(m.Functions) > 0:
			rank = 1
		}
		if rank < bestRank {
			best, bestRank = m.Name, rank
		}
	}
	if best == "" && mask {
		return a.editingModel(ctx, images, false) // the mask is refused
	}
	return cmp.Or(best, jobs.DefaultModel)
}

// keepModel gives a repeated request the model of the existing job, if the gateway chose it, or it
// has an alias: the models that are worked on, or the alias, may have changed.
func (a *api) keepModel(ctx context.Context, req *jobs.Request) {
	rec, err := a.jobs.Get(ctx, req.ID)
	if errors.Is(err, jobs.ErrNotFound) {
		rec, err = a.cfg.LoadSidecar(ctx, req.ID)
	}
	if err == nil && rec.Model != req.Model {
		req.Model, req.Function = rec.Model, ""
		setEditFunction(req)
	}
}

// check refuses a request that is not valid, and files that its model does not take.
func (in *editInput) check(req jobs.Request) error {
	var wrong []jobs.FieldError
	normalized, _, err := req.Normalize()
	if invalid := (*jobs.InvalidError)(nil); errors.As(err, &invalid) {
		wrong = slices.Clone(invalid.Fields)
	}
	limits := ReferenceLimits(normalized.Model)
	for i, image := range in.images {
		wrong = append(wrong, image.inspect(fmt.Sprintf("ref_images %d", i+1), limits)...)
	}
	if in.mask != nil {
		wrong = append(wrong, in.mask.inspect("mask_image_url", limits)...)
	}
	if len(wrong) > 0 {
		return &jobs.InvalidError{Fields: wrong}
	}
	return nil
}

// inspect checks the file of an image.
func (f *editImage) inspect(field string, limits storage.ReferenceLimits) []jobs.FieldError {
	if f.path == "" { // by its URL
		return nil
	}
	ref, err := limits.Inspect(f.path)
	if err != nil {
		return []jobs.FieldError{{Field: field, Value: "the image", Err: withoutPath(err, f.path)}}
	}
	f.ref = ref
	return nil
}

// stage stores the files of a request under the names in it. A mask is converted first.
func (in *editInput) stage(req *jobs.Request) error {
	if in.mask != nil {
		if err := in.convertMask(); err != nil {
			return err
		}
		req.MaskImageURL = in.mask.name
	}
	for _, image := range in.all() {
		if image.ref == nil {
			continue
		}
		if err := in.api.countUpload(in.r.Context(), in.r.caller); err != nil {
			return err
		}
		if err := in.api.storeReference(in.r.Context(), in.r.caller, image.ref); err != nil {
			return fmt.Errorf("stage image: %w", err)
		}
	}
	return nil
}

// convertMask turns OpenAI's mask, whose transparent pixels are to be edited, into DashScope's,
// where these are white and all others black.
func (in *editInput) convertMask() error {
	m := in.mask
	if m.path == "" {
		staging := in.api.cfg.Staging
		fetched, err := storage.FetchReference(in.r.Context(), m.name, staging)
		if source := (*storage.StageError)(nil); errors.As(err, &source) && source.Temporary {
			return &referenceUnavailableError{"mask_image_url", err}
		} else if err != nil && source != nil {
			return maskError(err)
		} else if err != nil {
			return fmt.Errorf("read mask: %w", err)
		}
		m.path, m.ref = fetched.Path, fetched
	}
	if base := in.images[0].ref; base != nil && (base.Width != m.ref.Width || base.Height != m.ref.Height) {
		return maskError(fmt.Errorf("is %d×%d, and the first image %d×%d: both must be of the same size", m.ref.Width, m.ref.Height, base.Width, base.Height))
	}
	path, err := writeMask(m.path, in.api.cfg.TempDir)
	in.converted = path
	if unfit := (*unfitError)(nil); errors.As(err, &unfit) {
		return maskError(err)
	}
	if err != nil {
		return err
	}
	if m.ref, err = (storage.ReferenceLimits{MinSide: 1, MaxSide: max(m.ref.Width, m.ref.Height)}).Inspect(path); err != nil {
		return maskError(withoutPath(err, path))
	}
	m.name = jobs.StagedPrefix + m.ref.SHA256
	return nil
}

func maskError(err error) error {
	return &jobs.InvalidError{Fields: []jobs.FieldError{{Field: "mask_image_url", Value: "the mask", Err: err}}}
}

// removeFiles removes the temporary files.
func (in *editInput) removeFiles() {
	for _, image := range in.all() {
		if image.path != "" {
			_ = os.Remove(image.path) // a temporary file
		}
	}
	if in.converted != "" {
		_ = os.Remove(in.converted) // a temporary file
	}
}
