/** An error that reaches the application with this code. */
export const failure = (message, code, cause) => Object.assign(new Error(message, { cause }), { code });
