package main

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/danqing-queue/danqing/cmd/danqing/gallery"
	"github.com/danqing-queue/danqing/storage/atomicfile"
)

// galleryPath returns the path of the gallery of a batch, beside its results.
func galleryPath(results string) string {
	base, isResults := strings.CutSuffix(results, ".results.jsonl")
	if !isResults {
		base = strings.TrimSuffix(results, filepath.Ext(results))
	}
	return base + ".gallery.html"
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

// galleryOf returns a batch's gallery, without the sources of its images.
func (r *batchRun) galleryOf(ctx context.Context, s *batchFile) (*batchGallery, error) {
	g := &batchGallery{Gallery: gallery.Gallery{
		Title: s.name, Key: s.name, File: s.name, Simulated: r.runtime.worker.Simulated(), Time: time.Now(),
	}}
	taken := map[string]bool{}
	if err := r.runtime.bucket.SidecarIDs(ctx, s.idPrefix(), func(id string, _ time.Time) { taken[id] = true }); err != nil {
		return nil, err
	}
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
			redo, _, err := redoLine(l, func(id string) (bool, error) { return taken[id] || r.byID[id] != nil, nil })
			if err != nil {
				return nil, err
			}
			g.add(l, reqs[i].Prompt, string(redo), result)
		}
	}
	return g, nil
}

// add adds a line and its result.
func (g *batchGallery) add(l *line, prompt, redo string, r *result) {
	shown := gallery.Line{
		JobID: l.id, ID: l.lineID, Prompt: prompt, State: string(r.State), Reason: reason(r.Code, r.Message),
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
