package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/cmd/danqing/gallery"
	"github.com/danqing-queue/danqing/jobs"
	"github.com/danqing-queue/danqing/jobs/jobid"
	"github.com/danqing-queue/danqing/storage/atomicfile"
	"github.com/danqing-queue/danqing/worker"
)

// galleryPath returns the path of the gallery of a batch, beside its results. The redos of a
// batch are in the batch's gallery.
func galleryPath(results string) string {
	name := filepath.Base(results)
	base := filepath.Join(filepath.Dir(results), jobs.BatchName(name))
	if strings.Contains(name, ".simulated.") {
		base += ".simulated"
	}
	return base + ".gallery.html"
}

// shownLine is a line of a gallery with its result. Its job may be one of an earlier run.
type shownLine struct {
	*line
	prompt, redoOf string
	result         *result
}

// batchGallery is the gallery of a batch, and the results that its lines show.
type batchGallery struct {
	gallery.Gallery
	results []*result
}

// writeGallery writes a page with the images of a batch beside its results, and another one
// into the bucket, beside the images.
func (r *batchRun) writeGallery(ctx context.Context, s *batchFile) error {
	g, err := r.galleryOf(ctx, s)
	if err != nil {
		return fmt.Errorf("gallery: %w", err)
	}
	local, err := filepath.Abs(galleryPath(s.results))
	if err != nil {
		return fmt.Errorf("gallery: %w", err)
	}
	g.setSources(func(image *resultImage) []string {
		if image.File != "" {
			return []string{fileURL(filepath.Dir(local), image.File), image.URL}
		}
		return []string{image.URL}
	})
	if err := atomicfile.Write(local, 0o644, g.Write); err != nil {
		return fmt.Errorf("write the gallery %s: %w", local, err)
	}
	folder := s.imageFolder()
	if folder == "" {
		return nil
	}
	g.setSources(func(image *resultImage) []string {
		return []string{relativeURL(folder, image.Key), image.URL}
	})
	var page bytes.Buffer
	if err := g.Write(&page); err != nil {
		return fmt.Errorf("gallery: %w", err)
	}
	return r.runtime.bucket.PutPage(ctx, path.Join(folder, filepath.Base(local)), page.Bytes())
}

// galleryOf returns the gallery of a file's batch, without the sources of its images: with the
// lines of the file, of the batch's results if the file is one of redos, and of redos in the
// bucket.
func (r *batchRun) galleryOf(ctx context.Context, s *batchFile) (*batchGallery, error) {
	lines, err := r.ownLines(ctx, s)
	if err != nil {
		return nil, err
	}
	shown := map[string]bool{}
	for _, l := range lines {
		shown[l.id] = true
	}
	batchResults := strings.TrimSuffix(galleryPath(s.results), ".gallery.html") + ".results.jsonl"
	for _, l := range linesOfResults(batchResults, s) {
		if shown[l.id] {
			continue
		}
		if l.result, err = r.result(ctx, l.line); err != nil { // with new links
			return nil, err
		}
		lines, shown[l.id] = append(lines, l), true
	}
	taken := map[string]bool{}
	batch, _ := jobid.Split(s.lines[0].id)
	if err := r.runtime.bucket.SidecarIDs(ctx, batch+".", func(id string, _ time.Time) { taken[id] = true }); err != nil {
		return nil, err
	}
	for _, id := range slices.Sorted(maps.Keys(taken)) {
		if shown[id] || !redoPattern.MatchString(id) {
			continue
		}
		l, err := r.storedLine(ctx, s, id)
		if err != nil {
			return nil, err
		}
		lines = append(lines, l)
	}
	g := &batchGallery{Gallery: gallery.Gallery{
		Title: s.name, Key: s.name, File: s.name, Simulated: r.runtime.worker.Simulated(), Time: time.Now(),
	}}
	for _, l := range redosBesideOriginals(lines) {
		public := *l.line // the page may be seen by many, and the URL of a callback be a credential
		if public.raw, err = (jobs.Line{Number: l.number, Raw: l.raw}).Without("callback"); err != nil {
			return nil, err
		}
		l.line = &public
		redo, _, err := redoLine(l.line, func(id string) (bool, error) { return taken[id] || shown[id], nil })
		if err != nil {
			return nil, err
		}
		g.add(l, string(redo))
	}
	return g, nil
}

// ownLines returns the lines of a batch file, with links to their images.
func (r *batchRun) ownLines(ctx context.Context, s *batchFile) ([]shownLine, error) {
	var list []shownLine
	for lines := range slices.Chunk(s.lines, groupSize) {
		reqs, err := requests(lines)
		if err != nil {
			return nil, err
		}
		for i, l := range lines {
			result, err := r.result(ctx, l)
			if err != nil {
				return nil, err
			}
			list = append(list, shownLine{line: l, prompt: reqs[i].Prompt, redoOf: reqs[i].RedoOf, result: result})
		}
	}
	return list, nil
}

// linesOfResults reads the results file of a batch.
func linesOfResults(path string, s *batchFile) []shownLine {
	var list []shownLine
	for text, result := range resultLines(path) {
		var request struct {
			Prompt string `json:"prompt"`
			RedoOf string `json:"redo_of"`
			Input  struct {
				Prompt string `json:"prompt"`
			} `json:"input"`
		}
		_ = json.Unmarshal(text, &request) // it is shown without a prompt then
		list = append(list, shownLine{
			line: lineOfJob(s, result, bytes.Clone(text)), prompt: cmp.Or(request.Prompt, request.Input.Prompt), redoOf: request.RedoOf,
		})
	}
	return list
}

// lineOfJob returns a line of a batch that is not in its file.
func lineOfJob(s *batchFile, r *result, raw []byte) *line {
	_, id := jobid.Split(r.JobID)
	return &line{file: s, raw: raw, id: r.JobID, lineID: id, result: r}
}

// storedLine returns a line for a finished job in the bucket.
func (r *batchRun) storedLine(ctx context.Context, s *batchFile, jobID string) (shownLine, error) {
	sidecar, err := r.runtime.bucket.Sidecar(ctx, jobID)
	if err != nil {
		return shownLine{}, err
	}
	rec, err := worker.RecordOf(sidecar)
	if err != nil {
		return shownLine{}, err
	}
	var raw bytes.Buffer
	if err := json.Compact(&raw, sidecar.Request); err != nil {
		return shownLine{}, err
	}
	shown := shownLine{line: lineOfJob(s, resultOf(&rec.Job), raw.Bytes()), prompt: rec.Request.Prompt, redoOf: sidecar.RedoOf}
	shown.result, err = r.result(ctx, shown.line)
	return shown, err
}

// redosBesideOriginals returns lines with the redos of each after it.
func redosBesideOriginals(lines []shownLine) []shownLine {
	present, redos := map[string]bool{}, map[string][]shownLine{}
	for _, l := range lines {
		present[l.id] = true
	}
	var ordered []shownLine
	for _, l := range lines {
		if present[l.redoOf] {
			redos[l.redoOf] = append(redos[l.redoOf], l)
		}
	}
	for _, list := range redos { // redo-2 before redo-10
		slices.SortFunc(list, func(a, b shownLine) int { return cmp.Or(len(a.id)-len(b.id), strings.Compare(a.id, b.id)) })
	}
	added := map[string]bool{}
	var add func(shownLine)
	add = func(l shownLine) {
		if added[l.id] {
			return
		}
		added[l.id] = true
		ordered = append(ordered, l)
		for _, redo := range redos[l.id] {
			add(redo)
		}
	}
	for _, l := range lines {
		if !present[l.redoOf] {
			add(l)
		}
	}
	for _, l := range lines { // those that are redos of each other
		add(l)
	}
	return ordered
}

// add adds a line and its result.
func (g *batchGallery) add(l shownLine, redo string) {
	r := l.result
	shown := gallery.Line{
		JobID: l.id, ID: l.lineID, Prompt: l.prompt, State: string(r.State), Reason: reason(r.Code, r.Message),
		CostYuan: r.CostYuan, Raw: string(l.raw), Redo: redo,
	}
	g.CostYuan = math.Round((g.CostYuan+r.CostYuan)*1e6) / 1e6
	for _, image := range r.Images {
		shown.Images = append(shown.Images, gallery.Image{
			N: image.N, Name: image.Key, Width: image.Width, Height: image.Height, Seed: image.Seed, Reason: reason(image.Code, image.Message),
		})
		if at := image.URLExpiresAt; !at.IsZero() && (g.LinksExpireAt.IsZero() || at.Before(g.LinksExpireAt)) {
			g.LinksExpireAt = at
		}
	}
	g.Lines, g.results = append(g.Lines, shown), append(g.results, r)
}

// setSources sets the sources of all images; empty ones are left out.
func (g *batchGallery) setSources(of func(*resultImage) []string) {
	for i, line := range g.Lines {
		for j := range line.Images {
			if image := &g.results[i].Images[j]; image.Key != "" {
				line.Images[j].Sources = slices.DeleteFunc(of(image), func(source string) bool { return source == "" })
			}
		}
	}
}

func reason(code, message string) string {
	if code == "" {
		return ""
	}
	return code + ": " + message
}

// fileURL returns a URL of a file for a page in a folder.
func fileURL(folder, file string) string {
	file, err := filepath.Abs(file)
	if err != nil {
		return ""
	}
	relative, err := filepath.Rel(folder, file)
	if err != nil { // another drive
		return (&url.URL{Scheme: "file", Path: "/" + strings.TrimPrefix(filepath.ToSlash(file), "/")}).String()
	}
	return relativeURL(".", filepath.ToSlash(relative))
}

// relativeURL returns a URL of a path for a page in a folder. It is in the folder, or else
// it is below folders of the folder's own ones.
func relativeURL(folder, to string) string {
	up := ""
	for folder != "." && !strings.HasPrefix(to, folder+"/") {
		folder, up = path.Dir(folder), up+"../"
	}
	segments := strings.Split(strings.TrimPrefix(to, folder+"/"), "/")
	for i, segment := range segments {
		segments[i] = url.PathEscape(segment)
	}
	if up == "" && segments[0] != ".." {
		up = "./" // a colon in a name is not the end of a scheme
	}
	return up + strings.Join(segments, "/")
}
