package main

import (
	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

// normalizeName returns the form of a name that all names have which look the same: some
// systems decompose letters such as é and が.
func normalizeName(name string) string { return norm.NFC.String(name) }

// foldName returns the same text for names that some file systems cannot tell apart: those of
// macOS and Windows ignore case, and that of macOS the composition of letters.
func foldName(name string) string {
	return norm.NFC.String(cases.Fold().String(norm.NFD.String(name)))
}
