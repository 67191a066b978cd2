// cluster_server.js rr|none: an echo server on Node's cluster with two workers. rr: the primary accepts and
// passes each connection on (SCHED_RR); none: the workers accept from a shared handle (SCHED_NONE).
// Listens on 127.0.0.1 at a free port, and says which. SIGTERM ends it with exit code 0.
'use strict';
const cluster = require('node:cluster');
const net = require('node:net');

const policies = {rr: cluster.SCHED_RR, none: cluster.SCHED_NONE};
const workers = 2;

if (cluster.isPrimary) {
  const policy = process.argv[2];
  if (process.argv.length !== 3 || !(policy in policies)) {
    console.error('cluster_server: allowed: one argument, rr or none');
    process.exit(2);
  }
  cluster.schedulingPolicy = policies[policy];
  let ready = 0;
  cluster.on('listening', (worker, address) => {
    if (++ready === workers) console.log(`listening 127.0.0.1:${address.port}`);
  });
  let ending = false;
  cluster.on('exit', (worker, code, signal) => {
    if (ending) return;
    console.error(`cluster_server: worker ended: ${signal ?? code}`);
    process.exit(1);
  });
  process.on('SIGTERM', () => {
    ending = true;
    for (const worker of Object.values(cluster.workers)) worker.process.kill('SIGKILL');
    process.exit(0);
  });
  for (let i = 0; i < workers; ++i) cluster.fork();
} else {
  const server = net.createServer((socket) => {
    socket.on('error', () => socket.destroy());  // a reset is its client's end
    socket.pipe(socket);
  });
  server.listen({host: '127.0.0.1', port: 0, backlog: 4096});
}
