//! `ngx_amesh_module`: stock nginx as the data plane of an xDS service mesh.
//!
//! This crate is the glue: it knows nginx, and everything below it does not. See ARCHITECTURE.md for the rooms.

// A dynamic module's tables are found by name and written by nginx: they cannot be anything but `static mut`.
#![allow(static_mut_refs)]

mod abi;
mod conf;
mod etcd;
mod guard;
mod http;
mod lb;
mod listening;
mod master;
mod nginx;
mod original_dst;
mod settings;
mod stream;
mod zone;

use ngx::ffi::ngx_module_t;
use std::os::raw::c_char;

/// The modules of this library, in the order in which nginx takes them in.
#[no_mangle]
#[allow(non_upper_case_globals)]
pub static mut ngx_modules: [*const ngx_module_t; 4] = [
    &raw const conf::ngx_amesh_module,
    &raw const http::ngx_http_amesh_module,
    &raw const stream::ngx_stream_amesh_module,
    std::ptr::null(),
];

/// Their names, as nginx's duplicate check knows them.
#[no_mangle]
#[allow(non_upper_case_globals)]
pub static mut ngx_module_names: [*const c_char; 4] = [
    c"ngx_amesh_module".as_ptr(),
    c"ngx_http_amesh_module".as_ptr(),
    c"ngx_stream_amesh_module".as_ptr(),
    std::ptr::null(),
];

/// No module of ours wants a place before another: filters go on top.
#[no_mangle]
#[allow(non_upper_case_globals)]
pub static mut ngx_module_order: [*const c_char; 1] = [std::ptr::null()];
