/** Why a request over the control socket is not answered: one line for whoever asked, and an HTTP status (see protocol.ts). */
export class Refusal extends Error {
  readonly status: 400 | 404 | 405 | 409 | 500 | 503;

  constructor(status: Refusal['status'], message: string) {
    super(message);
    this.status = status;
  }
}
