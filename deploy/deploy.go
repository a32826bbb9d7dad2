// SPDX-License-Identifier: Apache-2.0

// Package deploy holds how Sidetrack gets into a cluster: charts, the same
// rendered as files, and images.
//
// It owns the rendered files and the version that they deploy. It never talks to
// a cluster. Everything in it may be called concurrently.
package deploy

import (
	_ "embed"
	"fmt"

	"sigs.k8s.io/yaml"
)

//go:generate go run ./render

//go:embed charts/sidetrack/Chart.yaml
var chart []byte

//go:embed charts/sidetrack/values.yaml
var values []byte

// Images says where the images are that the charts deploy: the registry that is
// in front of a program's name, and the tag behind it.
func Images() (registry, tag string, err error) {
	var c struct {
		AppVersion string `json:"appVersion"`
	}
	if err := yaml.Unmarshal(chart, &c); err != nil {
		return "", "", fmt.Errorf("read Chart.yaml: %w", err)
	}
	var v struct {
		Images struct {
			Registry, Tag string
		} `json:"images"`
	}
	if err := yaml.Unmarshal(values, &v); err != nil {
		return "", "", fmt.Errorf("read values.yaml: %w", err)
	}
	if v.Images.Tag != "" {
		return v.Images.Registry, v.Images.Tag, nil
	}
	return v.Images.Registry, c.AppVersion, nil
}
