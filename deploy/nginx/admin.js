// Calls for those who have the admin token. nginx knows its SHA-256 only, and Triton checks it again.

import crypto from 'crypto';
import calls from 'grpc.js';
import shapes from 'shapes.js';

function http(r) {
    shapes.admit(r, () => checkToken(r, r.headersIn['triton-admin']), '@http');
}

function grpc(r) {
    shapes.admit(r, () => {
        calls.whole(r);
        checkToken(r, r.headersIn['triton-grpc-protocol-triton-admin']);
    }, '@grpc');
}

function checkToken(r, token) {
    const digest = crypto.createHash('sha256').update(token || '').digest('hex');
    if (digest !== r.variables.admin_sha256) {
        shapes.refuse(403, '');
    }
    r.variables.admin_token = token;
}

export default {http, grpc};
