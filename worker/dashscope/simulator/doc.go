// Package simulator is a DashScope over HTTP that needs no key and costs
// nothing.
package simulator
