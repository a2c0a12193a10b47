//! `ameshctl`: asks the code that workers run what a configuration does, without an nginx.

#![forbid(unsafe_code)]

pub mod route_check;
