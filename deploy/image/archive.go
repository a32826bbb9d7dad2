// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"io"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

type namedImage struct {
	tag   name.Tag
	image v1.Image
}

// writeArchive writes images as "docker save" does, in their order: the
// tarball package's own writer has them in another order each time.
func writeArchive(out io.Writer, images []namedImage) error {
	w := tar.NewWriter(out)
	file := func(name string, content []byte) error {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(content)), Mode: 0o644, ModTime: epoch}); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		if _, err := w.Write(content); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		return nil
	}
	var manifest tarball.Manifest
	for _, i := range images {
		config, err := i.image.RawConfigFile()
		if err != nil {
			return fmt.Errorf("pack %s: %w", i.tag, err)
		}
		digest, err := i.image.ConfigName()
		if err != nil {
			return fmt.Errorf("pack %s: %w", i.tag, err)
		}
		entry := tarball.Descriptor{Config: digest.Hex + ".json", RepoTags: []string{i.tag.String()}}
		if err := file(entry.Config, config); err != nil {
			return err
		}
		layers, err := i.image.Layers()
		if err != nil {
			return fmt.Errorf("pack %s: %w", i.tag, err)
		}
		for _, l := range layers {
			digest, err := l.Digest()
			if err != nil {
				return fmt.Errorf("pack %s: %w", i.tag, err)
			}
			content, err := compressed(l)
			if err != nil {
				return fmt.Errorf("pack %s: %w", i.tag, err)
			}
			name := digest.Hex + ".tar.gz"
			if err := file(name, content); err != nil {
				return err
			}
			entry.Layers = append(entry.Layers, name)
		}
		manifest = append(manifest, entry)
	}
	text, err := json.Marshal(manifest)
	if err != nil {
		return fmt.Errorf("write the manifest: %w", err)
	}
	if err := file("manifest.json", text); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("write the end: %w", err)
	}
	return nil
}

func compressed(l v1.Layer) ([]byte, error) {
	r, err := l.Compressed()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}
