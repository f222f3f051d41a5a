// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

// Package controllers stands in for the module of that path, of which Cilium uses this one name, in a feature that is off.
package controllers

// DerivedServiceAnnotation marks a ServiceImport with the Service that stands for it in its cluster.
const DerivedServiceAnnotation = "multicluster.kubernetes.io/derived-service"
